"""timm's ResNets and EfficientNets: which of their tensors make which parameters.

resnet18, 34, 50, 101 and 152; efficientnet_b0 to b7, trained in PyTorch, which pads alike on all
sides; and tf_efficientnet_b0 to b7 and l2, with TensorFlow's padding. A name says all that tensors
do not show.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from encoders.checkpoints.formats.mapping import (
    Exported,
    Rule,
    batch_norm,
    convolution,
    pointwise,
    prefixed,
)
from encoders.errors import CheckpointError, nearest
from encoders.layers.inverted_bottleneck import HEAD, SIZES, plan, scaled, squeezed

_BASIC = ("18", "34")  # whose blocks are no bottlenecks
NAMES = (
    *(f"resnet{depth}" for depth in (*_BASIC, "50", "101", "152")),
    *(f"efficientnet_{size.lower()}" for size in SIZES if size != "L2"),
    *(f"tf_efficientnet_{size.lower()}" for size in SIZES),
)
_POOLS = {"avg": "mean", "": "none"}
_ARGUMENTS = ("in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate")
_WIDTH = 64  # of every ResNet's stem there
# Of an EfficientNet, by whether its name begins with 'tf_': padding, eps of the batch norms.
_KINDS = {"": ("alike", 1e-5), "tf_": ("same", 1e-3)}
DROPPABLE = {r".*\.num_batches_tracked": "how many batches a running statistic is of"}


class Network(NamedTuple):
    """What a directory's network is.

    Attributes:
      model: section of the config.
      rules: of its parameters and running statistics.
      channels: of images.
      first_conv, classifier: their names there.
      width: of the pooled vectors.
    """

    model: dict[str, Any]
    rules: list[Rule]
    channels: int
    first_conv: str
    classifier: str
    width: int


def network(
    name: str,
    arguments: Mapping[str, Any],
    tensors: Iterable[str],
    channels: int,
    own: Mapping[str, Any],
    where: str,
) -> Network:
    """The network of that name in NAMES.

    Args:
      name: without a tag.
      arguments: it was made with.
      tensors: names of a ResNet's, which say its blocks where no argument does.
      channels: of images.
      own: fields of the model section that timm has no word for; see `described`.
      where: names the directory in errors.

    Raises:
      CheckpointError: an argument is not supported.
    """
    known = (*_ARGUMENTS, *["layers"] * name.startswith("resnet"))
    for argument in arguments:
        if argument not in known:
            raise CheckpointError(
                f"{where}: model_args.{argument} is not supported.{nearest(argument, known)}"
            )
    pool = arguments.get("global_pool", "avg")
    if pool not in _POOLS:
        raise CheckpointError(f"{where}: global_pool '{pool}' is not supported.")
    if name.startswith("resnet"):
        variant = name.removeprefix("resnet")
        blocks = tuple(arguments.get("layers") or _stages(tensors))
        model = {"name": "resnet", "variant": variant, "blocks": blocks, "pool": _POOLS[pool]}
        return _resnet({**model, **own}, 1 if variant in _BASIC else 4, channels)
    kind, _, size = name.partition("efficientnet_")
    padding, eps = _KINDS[kind]
    model = {"name": "efficientnet", "variant": size.upper(), "pool": _POOLS[pool]}
    model |= {"padding": padding, "norm_eps": eps, "norm_momentum": 0.9, **own}
    return _efficientnet(model, SIZES[model["variant"]][:2], channels)


def _stages(tensors: Iterable[str]) -> list[int]:
    """Blocks of every stage of a ResNet."""
    firsts = (re.fullmatch(r"layer(\d+)\.\d+\.conv1\.weight", name) for name in tensors)
    counts = collections.Counter(int(first[1]) for first in firsts if first)
    return [counts[stage] for stage in sorted(counts)]


def described(exported: Exported) -> tuple[str, dict[str, Any], dict[str, Any], Network]:
    """The inverse of `network`: name, arguments, what timm has no word for, and the network.

    Raises:
      CheckpointError: something that timm's network does not have, named by its field.
    """
    fields = exported.fields
    [pool] = [name for name, ours in _POOLS.items() if ours == fields["pool"]]
    arguments = {"in_chans": exported.channels, "global_pool": pool}
    own = {"norm_momentum": fields["norm_momentum"]}
    if fields["name"] == "resnet":
        _check(fields, "width", _WIDTH)
        if len(fields["blocks"]) != 4:
            raise _refuse("blocks", fields["blocks"], "four numbers")
        name = f"resnet{fields['variant']}"
        arguments["layers"] = list(fields["blocks"])
    else:
        _check(fields, "head", True)
        for field, value in zip(
            ("width_factor", "depth_factor"), SIZES[fields["variant"]], strict=False
        ):
            _check(fields, field, value)
        kinds = {padding: kind for kind, (padding, _) in _KINDS.items()}
        if fields["padding"] not in kinds:
            raise _refuse("padding", fields["padding"], " or ".join(map(repr, kinds)))
        kind = kinds[fields["padding"]]
        _check(fields, "norm_eps", _KINDS[kind][1])
        name = f"{kind}efficientnet_{fields['variant'].lower()}"
        if name not in NAMES:
            raise _refuse("variant", fields["variant"], "another, or padding='same'")
    where = "format 'timm'"
    return name, arguments, own, network(name, arguments, (), exported.channels, own, where)


def _check(fields: Mapping[str, Any], field: str, value: Any) -> None:
    if fields[field] != value:
        raise _refuse(field, fields[field], repr(value))


def _refuse(field: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"format 'timm': model.{field}={value!r} cannot be expressed: there it is {wanted}."
    )


def residual_rules(width: int, stages: tuple[int, ...], growth: int) -> list[Rule]:
    """Residual blocks as torchvision names them, and most others after it.

    Args:
      width: channels of the first stage, inside its blocks.
      stages: blocks of each.
      growth: channels of a block's output by those inside; 1 for blocks that are no bottlenecks.
    """
    rules: list[Rule] = []
    count, d_in = 0, width
    for stage, blocks in enumerate(stages):
        inside = width * 2**stage
        out = inside * growth
        for layer in range(blocks):
            sizes = ((3, d_in, inside), (3, inside, inside))
            if growth > 1:
                sizes = ((1, d_in, inside), (3, inside, inside), (1, inside, out))
            one: list[Rule] = []
            for number, (kernel, a, b) in enumerate(sizes, start=1):
                one += convolution(f"conv{number}", f"conv{number}", kernel, a, b)
                one += batch_norm(f"bn{number}", f"norm{number}", b)
            if d_in != out:
                one += convolution("downsample.0", "shortcut", 1, d_in, out)
                one += batch_norm("downsample.1", "shortcut_norm", out)
            rules += prefixed(one, f"layer{stage + 1}.{layer}.", f"blocks_{count}/")
            count, d_in = count + 1, out
    return rules


def _resnet(model: dict[str, Any], growth: int, channels: int) -> Network:
    blocks = model["blocks"]
    rules = convolution("conv1", "stem", 7, channels, _WIDTH)
    rules += batch_norm("bn1", "stem_norm", _WIDTH)
    rules += residual_rules(_WIDTH, blocks, growth)
    width = _WIDTH * 2 ** (len(blocks) - 1) * growth
    return Network(model, rules, channels, "conv1", "fc", width)


def _efficientnet(model: dict[str, Any], factors: tuple[float, float], channels: int) -> Network:
    blocks = list(plan(*factors))
    stem, width = blocks[0].channels, scaled(HEAD, factors[0])
    rules = convolution("conv_stem", "stem", 3, channels, stem)
    rules += batch_norm("bn1", "stem_norm", stem)
    index = 0
    for number, block in enumerate(blocks):
        index = 0 if block.first else index + 1
        inside, small = block.channels * block.expansion, squeezed(block.channels)
        one, bn = [], 1
        if block.expansion > 1:
            one += convolution("conv_pw", "expand", 1, block.channels, inside)
            one += batch_norm("bn1", "expand_norm", inside)
            bn = 2
        one += convolution("conv_dw", "filter", block.kernel, inside, inside, True)
        one += batch_norm(f"bn{bn}", "filter_norm", inside)
        one += pointwise("se.conv_reduce", "squeeze", inside, small)
        one += pointwise("se.conv_expand", "excite", small, inside)
        last = "conv_pwl" if block.expansion > 1 else "conv_pw"
        one += convolution(last, "project", 1, inside, block.features)
        one += batch_norm(f"bn{bn + 1}", "project_norm", block.features)
        rules += prefixed(one, f"blocks.{block.stage}.{index}.", f"blocks_{number}/")
    rules += convolution("conv_head", "head", 1, blocks[-1].features, width)
    rules += batch_norm("bn2", "head_norm", width)
    return Network(model, rules, channels, "conv_stem", "classifier", width)
