"""Run an exported policy with onnxruntime and without PyTorch, in a process of its own, as on a robot.

    python -m pytorch_serl.export.onnx_run policy.onnx THREADS

Reads pickled observations, batches by input name, from stdin until it ends, and writes pickled pairs to stdout: the
actions and the seconds that the session took.
"""

import pickle
import sys
import time

import onnxruntime


def main(path: str, threads: int) -> None:
    """Answer every batch that comes on stdin; `threads` is the number that one operator may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if "torch" in sys.modules:
        raise RuntimeError("PyTorch is imported in the process that shows that it is not needed")
    while True:
        try:
            obs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        start = time.perf_counter()
        (action,) = session.run(["action"], obs)
        pickle.dump((action, time.perf_counter() - start), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
