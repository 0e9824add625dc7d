"""The page of plans for the large configs that ship."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex

from encoders.config import load_config
from launch.planning import search, target
from launch.planning.report import Plan

_DATA = ("hardware.mesh.data=-1", "hardware.mesh.fsdp=1")
_SCAN = ("model.scan=True",)
_DECODER = ("objective.decoder.scan=True",)
_FULL = ("model.remat=full",)


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan of the table."""

    config: str
    machine: str
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        flag = "--devices" if self.counted else "--topology"
        words = ["python", "-m", "launch.plan", "--config", f"configs/{self.config}.py"]
        words += [flag, self.machine, *(f"--config.{override}" for override in self.overrides)]
        return shlex.join(words)

    @property
    def counted(self) -> bool:
        return ":" not in self.machine

    def plan(self) -> Plan:
        config = load_config(f"configs/{self.config}.py", list(self.overrides))
        if self.counted:
            return search.described(self.machine).plan(config)
        return search.pod(target.parse_topology(self.machine)).plan(config)


ROWS = (
    Row("vit_s16_in1k", "v5e:4x4", (*_SCAN, *_DATA)),
    Row("vit_b32_in1k", "v5e:4x4", (*_SCAN, *_DATA)),
    Row("vit_b16_in1k", "v5e:8x8", (*_SCAN, *_DATA, *_FULL)),
    Row("vit_l16_in1k", "v5p:4x4x4", (*_SCAN, *_FULL)),
    Row("vit_l16_in1k", "v5p:8x8x8", (*_SCAN, *_FULL, "hardware.mesh.data=8")),
    Row("mae_b16_in1k", "v5e:8x8", (*_SCAN, *_DECODER, *_DATA)),
    Row("mae_l16_in1k", "v5p:4x4x4", (*_SCAN, *_DECODER, *_FULL)),
    Row("mae_h14_in1k", "v5p:8x8x8", (*_SCAN, *_DECODER, *_FULL, "hardware.mesh.data=8")),
    Row("vit_22b_jft", "v5p:8x8x8", ("hardware.mesh.data=2", "hardware.mesh.fsdp=256")),
    Row("vit_22b_jft", "v5p:8x8x16", ("hardware.mesh.data=4", "hardware.mesh.fsdp=256")),
    Row("vit_22b_jft", "2x v5p:8x8x8", ("hardware.mesh.dcn=2", "hardware.mesh.data=2")),
    Row("vit_l16_in1k", "8xH200", (*_SCAN, *_FULL)),
    Row("mae_h14_in1k", "64xH200", (*_SCAN, *_FULL)),
    Row("vit_22b_jft", "512xH200", ("hardware.mesh.dcn=64", "hardware.micro_batches=2")),
)

_HEAD = """# Plans of the large configs

Written by

```
python -m launch.plan --table docs/plans.md
```

on a machine without an accelerator. What the columns mean: [launch/plan.md](launch/plan.md). Times
and MFU are bounds (everything at its data sheet's speed, all at once), so a real run is slower; no
row has been run. Rows of TPUs are compiled; rows of GPUs are counted. `compile` is what tracing and
compiling took on two CPU cores. The command fails if a row does not fit, or if its compiled text
gathers a full activation or optimizer state over chips; no row does.

"""


_COLUMNS = (
    "config", "machine", "mesh", "micro-batches, remat", "HBM, GiB", "step", "decided by",
    "examples/s", "MFU", "hours", "chip-hours", "compile",
)  # fmt: skip


def write(path: str, rows: tuple[Row, ...] = ROWS) -> int:
    """Writes the page; returns 1, and writes nothing, if a row does not fit or gathers too much."""
    plans, failed = [], False
    for row in rows:
        plan = row.plan()
        plans.append(plan)
        wrong = [plan.refusal or "does not fit"] if not plan.fits else plan.surprises
        print(f"{row.config} {row.machine}: {plan.seconds:.0f} s {'; '.join(wrong)}", flush=True)
        failed = failed or bool(wrong)
    if failed:
        return 1
    text = _HEAD + f"| {' | '.join(_COLUMNS)} |\n{'|---' * len(_COLUMNS)}|\n"
    text += "".join(_line(row, plan) for row, plan in zip(rows, plans, strict=True))
    text += "\nEach row's command, which prints the memory by part and the collectives:\n\n```\n"
    text += "".join(f"{row.command}\n" for row in rows) + "```\n"
    pathlib.Path(path).write_text(text, encoding="utf-8")
    return 0


def _line(row: Row, plan: Plan) -> str:
    cells = [row.config, row.machine, plan.shown_mesh, f"{plan.micro_batches}, {plan.remat}"]
    cells += [
        f"{plan.memory.total / 2**30:.1f} of {plan.capacity / 2**30:.1f}",
        f"{1e3 * plan.bound.step:,.1f} ms",
        plan.bound.limit,
        f"{plan.examples_per_second:,.0f}",
        f"{plan.mfu:.0%}",
        f"{plan.hours:,.1f}",
        f"{plan.hours * plan.chips:,.0f}",
        f"{plan.seconds:.0f} s" if plan.source == "compiled" else "-",
    ]
    return f"| {' | '.join(cells)} |\n"
