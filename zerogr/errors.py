"""The exceptions of the project: who is at fault decides what happens next.

`UserError` is a mistake in the input or the configuration: one clear sentence, exit status 2, never retried.
`StageRefused` is a `UserError` about an index whose stored state disagrees with the configuration.
Everything else (a lost node, a failing disk, a bug) keeps its own type: it is retried where retrying can help, and shown
with its traceback where it cannot.
"""

from __future__ import annotations


class ZeroGRError(Exception):
    """Base of the errors this project raises on purpose."""


class UserError(ZeroGRError):
    """A mistake the user can mend. The message is one sentence: what failed, the value seen, the limit, what to do."""


class StageRefused(UserError):
    """A stage of the index was made from something else than the configuration says."""
