"""A small experiment, compiled for TPUs that are not here."""

from ml_collections import ConfigDict

WIDTH, DEPTH, MLP, TOKENS = 512, 3, 2048, 64


def config(**hardware) -> ConfigDict:
    """A ViT with the shape of a large one: scanned, rematerialised, products that fill tiles."""
    made = ConfigDict(
        dict(
            batch_size=128,
            duration={"steps": 1000},
            preprocessing=dict(name="image", image_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3),
            data=dict(
                source=dict(name="synthetic", image_size=(64, 64), channels=3, num_classes=128,
                            num_examples=256),
                examples_per_epoch=256,
            ),
            model=dict(
                name="vit",
                variant="B/8",
                width=WIDTH,
                depth=DEPTH,
                mlp_dim=MLP,
                num_heads=4,
                positions="sincos2d",
                class_token=False,
                pool="mean",
                scan=True,
                remat="full",
            ),
            objective=dict(name="classification", num_classes=128),
            optimizer=dict(name="adamw", lr=1e-3, schedule=dict(name="cosine")),
            hardware=dict(mesh=dict(dcn=1, data=1, fsdp=-1, tensor=1, sequence=1), micro_batches=1),
        )
    )  # fmt: skip
    mesh = hardware.pop("mesh", {})
    made.hardware.update(hardware)
    made.hardware.mesh.update(mesh)
    return made
