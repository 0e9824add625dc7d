"""Runs evaluators on a checkpoint, or on weights from elsewhere; prints a JSON line for each.

  python -m tools.evaluate --workdir runs/x [--step N] [--evaluator NAME ...]
  python -m tools.evaluate --model PATH --config configs/demo.py [--evaluator NAME ...]
  python -m tools.evaluate --model PATH --evaluator zero_shot --images FOLDER
      [--classes names.txt] [--templates templates.txt]

--config.evaluators.knn.k=... changes fields as in training. The mesh is all devices of this
machine, however many the run was trained on; --config.hardware.mesh.tensor=... says otherwise.
Nothing is added to the run's metrics; pictures go to its pictures/.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from encoders.config import apply_override, load_config, to_plain
from encoders.errors import ConfigError, exit_cleanly, nearest
from launch.flags import Parser, parse


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
      objective: the whole module, or None where the weights are of an encoder only.
      encoder: the encoder within.
      variables: of the objective if there is one, else of the encoder.
      preprocessing: what it expects.
      step: of the checkpoint, or None.
    """

    objective: Any
    encoder: Any
    variables: Mapping[str, Any]
    preprocessing: Any
    step: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", help="a run: its config, and one of its checkpoints")
    what.add_argument("--model", help="a directory of another project, or what encoders.save wrote")
    parser.add_argument("--config", help="whose evaluators to run; a run has its own")
    parser.add_argument("--step", type=int, help="checkpoint of the run; by default the newest")
    parser.add_argument("--evaluator", nargs="+", metavar="NAME", help="by default all")
    parser.add_argument("--images", help="what zero_shot classifies: a folder for each class, tars")
    parser.add_argument("--classes", help="names of its classes, one on each line")
    parser.add_argument("--templates", help="its sentences with {} for the class, one on each line")
    flags, overrides = parse(parser, arguments)
    config = _config(flags, overrides)
    _set_zero_shot(config, flags)
    sections = _chosen(config, flags.evaluator)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("encoders").setLevel(logging.INFO)

    subject = (
        load_run(flags.workdir, config, flags.step) if flags.workdir else load_model(flags.model)
    )
    for line in evaluate(subject, config, sections, flags.workdir):
        print(json.dumps(line), flush=True)
    return 0


def _config(flags: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    if flags.workdir is None and flags.config is None:
        if flags.images is None:
            raise ConfigError("--model needs --config, which says what evaluators to run.")
        if overrides:
            raise ConfigError(f"{overrides[0]}: there is no --config to change.")
        return {"evaluators": {}, "hardware": {"mesh": {}}}
    if flags.workdir is None and any(change.startswith("preprocessing") for change in overrides):
        raise ConfigError("--config.preprocessing: that of --model travels with its weights.")
    if flags.workdir is None and flags.step is not None:
        raise ConfigError("--step is a checkpoint of a run; --model has one set of weights.")
    if flags.config is not None:
        path = flags.config
    else:
        path = str(pathlib.Path(flags.workdir) / "config.json")
        if not pathlib.Path(path).is_file():
            raise ConfigError(f"--workdir {flags.workdir}: there is no run, it has no config.json.")
    config = to_plain(load_config(path))
    # The run's mesh is that of the machine that trained it.
    config["hardware"] = {**config.get("hardware", {}), "mesh": {}}
    for override in overrides:
        apply_override(config, override)
    return config


def _set_zero_shot(config: dict[str, Any], flags: argparse.Namespace) -> None:
    """Puts --images, --classes and --templates into the section of zero_shot, or makes one."""
    given = {k: getattr(flags, k) for k in ("classes", "templates") if getattr(flags, k)}
    if flags.images is not None:
        given["test"] = _images(flags.images)
    if not given:
        return
    sections = config.setdefault("evaluators", {})
    chosen = flags.evaluator or ["zero_shot"]
    known = [k for k in chosen if sections.get(k, {"name": k})["name"] == "zero_shot"]
    if not known:
        raise ConfigError("--images, --classes and --templates: are for --evaluator zero_shot.")
    for name in known:
        sections[name] = {"name": "zero_shot", **sections.get(name, {}), **given}
        if "test" not in sections[name]:
            raise ConfigError(
                f"evaluators.{name}.test: is missing; --images says what to classify."
            )


def _images(path: str) -> dict[str, Any]:
    """The section of a source of images that have labels."""
    directory = pathlib.Path(path).expanduser()
    if (directory / "info.json").is_file():
        return {"name": "array_record", "path": path, "split": "test"}
    return {"name": "tar" if any(directory.glob("*.tar")) else "folder", "path": path}


def _chosen(config: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    sections = config.get("evaluators", {})
    if not sections:
        raise ConfigError("config.evaluators: there are none to run.")
    for name in names or ():
        if name not in sections:
            raise ConfigError(f"--evaluator: unknown '{name}'.{nearest(name, sections)}")
    chosen = {name: dict(sections[name]) for name in names or sections}
    for section in chosen.values():
        section.pop("every", None)
    return chosen


def load_run(workdir: str, config: Mapping[str, Any], step: int | None) -> Subject:
    """The objective of a run with the weights of one of its checkpoints.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
      ConfigError: texts would be prepared otherwise than in training.
    """
    from encoders import loading
    from encoders.checkpoints.store import CheckpointStore
    from encoders.config import build
    from encoders.data import PREPROCESSING
    from encoders.errors import CheckpointError
    from encoders.training.experiment import build_objective

    directory = pathlib.Path(workdir) / "checkpoints"
    with CheckpointStore(directory) as store:
        steps = store.steps()
    if not steps or (step is not None and step not in steps):
        asked = "checkpoint" if step is None else f"checkpoint of step {step}"
        have = f" Steps: {', '.join(map(str, steps))}." if steps else ""
        raise CheckpointError(f"{directory}: there is no {asked}.{have}")
    step = steps[-1] if step is None else step
    preprocessing = build(PREPROCESSING, config["preprocessing"], "preprocessing")
    with CheckpointStore(directory) as store:
        of_weights = store.metadata(step)["preprocessing"]
    _check_text(preprocessing, build(PREPROCESSING, of_weights, "preprocessing"))
    objective = build_objective(config, preprocessing)
    return Subject(
        objective=objective,
        encoder=objective.encoder,
        variables=loading.read_variables(directory / str(step)),
        preprocessing=preprocessing,
        step=step,
    )


def _check_text(here: Any, in_training: Any) -> None:
    """Two towers score texts only as they were prepared in training."""
    from encoders.data import ImageTextPreprocessing

    if not isinstance(here, ImageTextPreprocessing):
        return
    if differences := here.text.differences(in_training.text):
        raise ConfigError(
            "preprocessing.text: texts were prepared in another way in training, and would score "
            f"wrongly: here {', '.join(differences)}."
        )


def load_model(path: str) -> Subject:
    """Weights from elsewhere; with their head or decoder, where they have one.

    Raises:
      CheckpointError: there is nothing that can be read.
      ConfigError: the weights do not say what input they expect.
    """
    from encoders import loading
    from encoders.config import build
    from encoders.objectives import OBJECTIVES

    found = loading.load(path)
    if found.preprocessing is None:
        raise ConfigError(f"--model {path}: the weights came without preprocessing.")
    if found.objective is None:
        return Subject(None, found.module, found.variables, found.preprocessing, None)
    context = {"encoder": found.module, **found.preprocessing.for_objectives}
    objective = build(OBJECTIVES, found.objective, "objective", **context)
    params = {"encoder": found.variables["params"], **found.heads}
    variables = {"params": params}
    if stats := found.variables.get("stats"):
        variables["stats"] = {"encoder": stats}
    return Subject(objective, found.module, variables, found.preprocessing, None)


def evaluate(
    subject: Subject,
    config: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
    directory: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Runs evaluators one after the other.

    Args:
      subject: what to evaluate.
      config: for the mesh and sharding rules.
      sections: name -> section of each evaluator, without 'every'.
      directory: where pictures go, or None.

    Yields:
      {'evaluator': name, 'step': step or None, 'seconds': s, and its metrics}.

    Raises:
      ConfigError: a section is wrong, or needs an objective where there is an encoder only.
    """
    from encoders.config import build, construct
    from encoders.evaluation import EVALUATORS, FeatureExtractor
    from encoders.parallel.mesh import make_mesh

    mesh = construct(make_mesh, config["hardware"]["mesh"], "hardware.mesh", devices=None)
    context = {
        "preprocessing": subject.preprocessing,
        "mesh": mesh,
        "directory": directory,
        "extractor": FeatureExtractor(subject.preprocessing, mesh),
    }
    evaluators = {
        name: build(EVALUATORS, section, f"evaluators.{name}", label=name, **context)
        for name, section in sections.items()
    }
    for name, evaluator in evaluators.items():
        if evaluator.subject == "objective" and subject.objective is None:
            raise ConfigError(
                f"evaluators.{name}: measures an objective, but these weights are of an encoder "
                "without a head or decoder."
            )
    variables = _on_devices(subject.variables, config, mesh)
    of_encoder = variables
    if subject.objective is not None:
        alone = {**variables, "params": subject.objective.alone(variables["params"])}
        of_encoder = {k: v["encoder"] for k, v in alone.items() if "encoder" in v}
    for name, evaluator in evaluators.items():
        began = time.perf_counter()
        if evaluator.subject == "encoder":
            found = evaluator.run(subject.encoder, of_encoder, step=subject.step)
        else:
            found = evaluator.run(subject.objective, variables, step=subject.step)
        seconds = round(time.perf_counter() - began, 2)
        yield {"evaluator": name, "step": subject.step, "seconds": seconds, **found}


def _on_devices(variables: Mapping[str, Any], config: Mapping[str, Any], mesh: Any) -> Any:
    """Parameters sharded as in training, so that what could be trained can be evaluated."""
    import jax

    from encoders.parallel import sharding

    tensor_rules = config["hardware"].get("tensor_rules", sharding.TENSOR_RULES)
    specs = sharding.parameter_specs(variables["params"], mesh, tensor_rules)
    params = jax.device_put(variables["params"], sharding.named(mesh, specs))
    return {**variables, "params": params}


if __name__ == "__main__":
    exit_cleanly(main)
