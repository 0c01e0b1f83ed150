"""The one kind of failure that a person reads: a whole sentence, and the exit code that goes with it."""

UNUSABLE = 2  # command line, missing tools, files that cannot be read
FAILED = 1  # a run that began and did not come to its end


class Problem(Exception):
    def __init__(self, sentence, code=UNUSABLE):
        super().__init__(sentence)
        self.code = code
