"""An encoder reads a prompt once; what it made of it goes into all later passes of the decoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from dkn_engine.errors import DknError
from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.prefill import Prefill, token_log_probabilities

# Most that log p may differ beside the model's own pass: other batches round otherwise.
_ALLOWED = 1e-4


@torch.no_grad()
def with_states(model: nn.Module, contexts: Contexts, clean: Prefill) -> Contexts:
    """Contexts whose passes begin with the states that the encoder gave in the clean pass.

    The plain form is the encoder in every pass. It stays where there are no such states, or where
    the first sequence, read from them, does not get its own probabilities.
    """
    if clean.states is None:
        return contexts
    found = replace(contexts, states=clean.states)
    try:
        log_p, _ = token_log_probabilities(model, found.of_first(1))
    except (torch.OutOfMemoryError, DknError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return contexts  # It wants more of its encoder than the states.
    own = clean.log_probability[contexts.sequence == 0]
    allowed = max(_ALLOWED, 64 * float(torch.finfo(clean.states.dtype).eps))
    return found if bool(((log_p - own).abs() <= allowed).all()) else contexts
