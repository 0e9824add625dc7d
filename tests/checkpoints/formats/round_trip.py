"""What tests of encoders that transformers wrote share: there and back, and what is refused."""

import dataclasses

import chex
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError


def export(encoder, golden, tensors, own, out, **options):
    """Saves an encoder for transformers and loads it again, with nothing changed.

    Args:
      encoder: as loaded from the directory `golden`.
      golden: its config has to mean the same as what is written, whose defaults are spelt out.
      tensors: what has to be written, bit by bit.
      own: fields of the config that may differ.
      out: a directory to be made.
      **options: of `encoders.save`.

    Returns:
      What was loaded.
    """
    encoders.save(encoder, out, format="hf", **options)
    chex.assert_trees_all_equal(files.read_tensors(out), tensors)
    after, given = (files.read_json(path / files.CONFIG) for path in (out, golden))
    common = [name for name in after if name not in own]
    assert {name: given[name] for name in common} == {name: after[name] for name in common}
    again = encoders.load(out)
    assert again.module == encoder.module
    chex.assert_trees_all_equal(again.variables, encoder.variables)
    return again


def refused(encoder, fields, message, out):
    """An encoder whose fields the family has not is not saved; nor is it one of timm's."""
    changed = dataclasses.replace(encoder, module=encoder.module.clone(**fields))
    with pytest.raises(CheckpointError, match=message):
        encoders.save(changed, out, format="hf")
    with pytest.raises(CheckpointError, match="format 'timm': writes a ViT, and this is"):
        encoders.save(encoder, out, format="timm")


def copy(golden, directory, config=None, rename=lambda key: key):
    """Copies config and weights, with fields changed and tensors renamed, or left out by None."""
    directory.mkdir()
    fields = files.read_json(golden / files.CONFIG)
    files.write_json(directory / files.CONFIG, {**fields, **(config or {})})
    tensors = {rename(key): x for key, x in files.read_tensors(golden).items()}
    tensors.pop(None, None)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    return directory
