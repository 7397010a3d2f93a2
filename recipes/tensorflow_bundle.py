"""Have TensorFlow write a tiny GPT-2 as OpenAI released theirs, and beside it the numbers that its session gave back.

    pip install tensorflow-cpu safetensors      # in an environment of its own
    python recipes/tensorflow_bundle.py tests/data/tensorflow

The tests of the reader compare the two. Only this script needs TensorFlow.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

L, H, D, POSITIONS, V = 2, 2, 8, 16, 40
SHAPES = {
    "wpe": (POSITIONS, D),
    "wte": (V, D),
    **{
        f"h{layer}/{name}": shape
        for layer in range(L)
        for name, shape in {
            "ln_1/g": (D,),
            "ln_1/b": (D,),
            "ln_2/g": (D,),
            "ln_2/b": (D,),
            "attn/c_attn/w": (1, D, 3 * D),
            "attn/c_attn/b": (3 * D,),
            "attn/c_proj/w": (1, D, D),
            "attn/c_proj/b": (D,),
            "mlp/c_fc/w": (1, D, 4 * D),
            "mlp/c_fc/b": (4 * D,),
            "mlp/c_proj/w": (1, 4 * D, D),
            "mlp/c_proj/b": (D,),
        }.items()
    },
    "ln_f/g": (D,),
    "ln_f/b": (D,),
}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    v1, random = tf.compat.v1, np.random.default_rng(0)
    v1.disable_eager_execution()
    with v1.variable_scope("model"):
        variables = [
            v1.get_variable(name, initializer=(0.3 * random.standard_normal(shape)).astype(np.float32))
            for name, shape in SHAPES.items()
        ]
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        v1.train.Saver(variables).save(session, str(out / "model.ckpt"), write_meta_graph=False)
        values = {variable.op.name: np.ascontiguousarray(session.run(variable)) for variable in variables}
    save_file(values, out / "values.safetensors")
    (out / "checkpoint").unlink()  # the path of the last checkpoint, which nothing needs
    hparams = {"n_vocab": V, "n_ctx": POSITIONS, "n_embd": D, "n_head": H, "n_layer": L}
    (out / "hparams.json").write_text(json.dumps(hparams) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
