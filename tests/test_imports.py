"""`import encoders` is light, and no other framework is loaded to train."""

import json
import subprocess
import sys

HEAVY = {"torch", "tensorflow", "transformers", "timm", "libtpu"}


def modules_after(statement: str) -> tuple[set[str], float]:
    code = (
        "import json, sys, time; began = time.perf_counter(); "
        f"{statement}; print(json.dumps([sorted(sys.modules), time.perf_counter() - began]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(out.stdout)
    return {name.split(".")[0] for name in modules}, seconds


def test_import_is_light():
    # The fastest of three: the machine may be busy, the import is not to blame for that.
    modules, seconds = min((modules_after("import encoders") for _ in range(3)), key=lambda m: m[1])
    assert seconds < 2
    assert not modules & HEAVY


def test_training_and_tools_load_no_other_framework():
    modules, _ = modules_after(
        "import encoders.training.loop, launch.local, tools.evaluate, tools.embed, tools.report"
    )
    assert "jax" in modules
    of_jax, _ = modules_after("import jax")  # it loads libtpu where that is installed
    assert not (modules - of_jax) & HEAVY


def test_workers_of_the_pipeline_never_load_jax():
    modules, _ = modules_after("import encoders.data")
    assert not modules & {"jax", "flax", *HEAVY}
