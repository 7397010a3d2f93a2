"""The lessons as files: sources, the notebooks made of them, and a learner's answers."""
