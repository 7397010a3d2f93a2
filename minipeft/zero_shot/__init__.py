"""What a language model can do without training for it: perplexity, LAMBADA, HellaSwag."""

from minipeft.zero_shot.scoring import Row, Scored, Subject, score
from minipeft.zero_shot.tasks import ZERO_SHOT, Measured, Settings, measure

__all__ = ["ZERO_SHOT", "Measured", "Row", "Scored", "Settings", "Subject", "measure", "score"]
