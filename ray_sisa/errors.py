"""Every error a user can meet.

    SisaError
    ├── ConfigError         a configuration that cannot be run
    ├── DataError           samples that cannot be read, or that break a rule
    ├── RequestError        a deletion request that cannot be acknowledged
    ├── StoreError          an object that is absent, invalid or cannot be written
    ├── BusyError           another process holds the run
    ├── ResourcesError      the cluster cannot ever hold what is asked of it
    └── TrainingError       a chain of stages ended without its last stage
        └── DivergedError   a loss or a weight of a stage is not a finite number

Each names the field, the value met, the rule it breaks and the remedy, and survives pickling. None holds what a URI may
have of credentials.
"""

from ray_sisa.foreign_text import escaped, redacted


class SisaError(Exception):
    """Base of all errors raised on purpose by this package; as text it is one line that a terminal prints as it is."""

    _keep = ""

    def __init__(self, field: str, value: object, rule: str, remedy: str = "") -> None:
        # Plain strings only: the arguments are what pickling hands to the constructor in another process.
        self.field, self.value = redacted(field), _shorten(value)
        self.rule, self.remedy = redacted(rule), redacted(remedy)
        super().__init__(self.field, self.value, self.rule, self.remedy)

    def __str__(self) -> str:
        met = f" = {escaped(self.value)}" if self.value else ""
        said = f"{self.rule}. {self.remedy}" if self.remedy else self.rule
        return f"{escaped(self.field)}{met}: {escaped(said, self._keep)}"


class ConfigError(SisaError):
    """A configuration that cannot be run."""


class DataError(SisaError):
    """Samples that cannot be read, or that break a rule."""


class RequestError(SisaError):
    """A deletion request that cannot be acknowledged; nothing was written."""


class StoreError(SisaError):
    """An object that is absent, invalid or cannot be written."""


class BusyError(SisaError):
    """Another process holds the run."""


class ResourcesError(SisaError):
    """The cluster cannot ever hold what is asked of it."""


class TrainingError(SisaError):
    """A chain of stages ended without its last stage; the traceback of a worker keeps its lines."""

    _keep = "\n"


class DivergedError(TrainingError):
    """A loss or a weight of a stage is not a finite number."""

    epoch = step = 0
    """Of the stage, from 0."""
    what = ""
    """That is not finite."""


def _shorten(value: object, limit: int = 400) -> str:
    text = redacted(value if isinstance(value, str) else repr(value))
    if len(text) <= limit:
        return text
    # The whole is within the limit, so that pickling, which constructs anew, does not shorten it again.
    end = f"... ({len(text)} characters)"
    return text[: limit - len(end)] + end
