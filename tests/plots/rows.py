"""Rows of metrics.jsonl."""


def metrics(iterations=4, bits=3, evaluated=(2, 4)):
    """The rows of one code length, with easy numbers."""
    rows = []
    for iteration in range(1, iterations + 1):
        row = {
            "code_length": bits,
            "iteration": iteration,
            "loss": {"image": 40.0 - iteration, "latent": 50.0, "image_rec": 10.0**-iteration},
            "bit_mean": [0.1 * iteration, -0.2, 0.0],
            "distinct": 0.1 * iteration,
            "seconds": 1.0,
        }
        rows.append(row | ({"map": 0.2 * iteration} if iteration in evaluated else {}))
    return rows
