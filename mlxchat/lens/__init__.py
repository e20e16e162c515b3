"""Looking inside a model: what passes through its blocks, read or replaced.

The lens calls the same `embed`, `block` and `unembed` as the engine (`model/transformer.py`), with
taps as an argument, and owns its arrays: the engine's live cache is never touched. It speaks token
ids; text belongs to `chat/` and `cli/`. It sits beside the engine: cli -> chat -> lens -> model.
Everything here runs on the worker thread.

Reading, `trace.py`:

    seen = trace(model, token_ids, points=["resid_post", "pattern"])
    seen["resid_post", 3]   # (T, D), layer 3; points and shapes are in `model/taps.py`
    seen.stack("resid_post")  # (L, T, D)
    seen.logits             # (T, V)
    unembed(model, rows)    # the logits of any residual rows (N, D): the logit lens
    trace(model, ids, start=900)  # of a long text record the end only

Changing, `edits.py`, each also a `taps` argument of `model.forward/prefill/hidden`:

    Replace(layer, position, row)       # resid_post of one position of the pass (patching)
    Add({layer: row, ...})              # resid_post + row at every position (steering)
    Checked(check)                      # ends a long pass when check raises
    Both(taps, more_taps)               # one after the other: changes first, then the recorder
    trace(model, ids, points, edits=Replace(3, 5, row))

A point that a model cannot show (zoo models show `resid_pre` and `resid_post` only) raises
`UnsupportedModelError` with the reason.
"""
