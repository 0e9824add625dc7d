"""The smallest experiment that uses the whole loop; also a config file for real processes."""

from ml_collections import ConfigDict


def get_config(arg=None):
    del arg
    config = ConfigDict()
    config.seed = 3
    config.duration = {"steps": 20}
    config.batch_size = 16
    config.preprocessing = dict(name="image", image_size=(16, 16))
    config.data = dict(
        source=dict(name="synthetic", image_size=(20, 20), num_classes=4, num_examples=40),
        transforms=(dict(name="random_resized_crop"), dict(name="random_flip")),
        threads=1,
    )
    config.model = dict(name="vit", width=24, depth=1, mlp_dim=48, num_heads=2, patch_size=8)
    config.model.dropout = 0.1
    config.objective = dict(name="classification", num_classes=4, mixup=0.2)
    config.optimizer = dict(
        name="adamw",
        lr=1e-2,
        schedule=dict(name="cosine", warmup={"steps": 2}),
        weight_decay=0.05,
        frozen=(),
    )
    config.ema = 0.9
    config.checkpoint = dict(every={"steps": 10}, keep_last=5)
    config.log = dict(every={"steps": 5}, tensorboard=False)
    config.evaluators = {}
    config.hardware = dict(fsdp_min_size=64)
    config.deadlines = {}
    return config
