"""A failure that the user reads: a whole sentence, and its exit code."""

UNUSABLE = 2  # command line, missing tools, files that cannot be read
FAILED = 1  # a run that started and did not finish


class Problem(Exception):
    def __init__(self, sentence, code=UNUSABLE):
        super().__init__(sentence)
        self.code = code
