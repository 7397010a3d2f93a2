"""Comparing methods: the same tasks, models, steps, tokens and trials for each, chosen on dev, tested once."""

from minipeft.compare.compete import compete
from minipeft.compare.protocol import read_study, study_of
from minipeft.compare.results import Results
from minipeft.compare.study import Contender, Part, Run, Study, StudyError

__all__ = ["Contender", "Part", "Results", "Run", "Study", "StudyError", "compete", "read_study", "study_of"]
