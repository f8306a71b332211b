"""One measurement in a fresh process: ``python -m vivit_bench.comparison.child SPEC``.

Set-up and a warm-up on two samples come first and are not measured. The result goes to
a file, the measurement to stdout.
"""

import json
import sys
import time


def main() -> None:
    """Run the work that the JSON in the first argument describes."""
    spec = json.loads(sys.argv[1])
    import torch

    from vivit_bench.critical_batch.process_memory import peak_over, read_memory, reset_peak
    from vivit_bench.critical_batch.workloads import EngineWorkload

    torch.set_num_threads(spec["threads"])
    workload = EngineWorkload(**spec["work"])
    workload.warm_up()
    reset_peak()
    idle = read_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    result = workload.run(spec["n"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    now = read_memory()
    assert isinstance(result, dict)
    assert idle is not None
    assert now is not None
    torch.save({name: tensor.cpu() for name, tensor in result.items()}, spec["result"])
    peak = peak_over(idle, now)
    figures = {"wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak}
    # Not part of what is measured: the same once more, with its check by plain autograd.
    if spec["certify"] and (certificate := workload.certify(spec["n"])) is not None:
        figures |= {
            "certificate_seconds": certificate.seconds,
            "certificate_error": certificate.worst,
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    from vivit_bench.critical_batch.failures import BatchLimitError
    from vivit_bench.errors import UsageError, VivitBenchError

    try:
        main()
    except (VivitBenchError, BatchLimitError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", UsageError.exit_code))
