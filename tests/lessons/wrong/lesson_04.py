"""Wrong readings of a public file."""

from tests.lessons.wrong import fails_with

LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")


def read(stored, linear=LINEAR, no_weights=NO_WEIGHTS, turn=lambda tensor: tensor.T, prefix="transformer."):
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith(no_weights)}
    return {name.removeprefix(prefix): turn(t) if name.endswith(linear) else t for name, t in kept.items()}


@fails_with(r"h.0.attn.c_attn.weight is \(8, 24\); the file has it as \[in, out\]")
def untransposed(stored):
    return read(stored, linear="nothing")


@fails_with("h.0.attn.c_proj.weight was not transposed: it is square")
def square_ones_forgotten(stored):
    return read(stored, linear=("c_attn.weight", "c_fc.weight", "mlp.c_proj.weight"))


@fails_with("h.0.attn.c_attn.weight was reshaped")
def reshaped(stored):
    return read(stored, turn=lambda tensor: tensor.reshape(tensor.T.shape))


@fails_with("c_attn.bias is missing: it is a weight, but its name also ends in attn.bias")
def biases_thrown_away(stored):
    return read(stored, no_weights=("attn.bias", "masked_bias", "lm_head.weight"))


@fails_with("h.0.attn.bias is still there: that is the causal mask")
def masks_kept(stored):
    return read(stored, no_weights="lm_head.weight")


@fails_with("lm_head.weight is still there: the head is tied")
def head_kept(stored):
    return read(stored, no_weights=(".attn.bias", ".attn.masked_bias"))


@fails_with("some names still begin with transformer")
def prefix_kept(stored):
    return read(stored, prefix="")


@fails_with("wte.weight was transposed: it is a table")
def everything_transposed(stored):
    return {name: t.T if t.dim() == 2 else t for name, t in read(stored, linear="nothing").items()}
