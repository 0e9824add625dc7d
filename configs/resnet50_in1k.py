"""ResNet-50 on ImageNet-1k, 90 epochs.

Paper: Accurate, Large Minibatch SGD, arXiv 1706.02677, section 5.1 and table 1.
Command: python -m launch.local --config configs/resnet50_in1k.py --workdir runs/resnet50
Cost: not measured here.
Published: 76.4 top-1 at batch 256, 76.3 at 8,192.
Measured: not run.
Differences: batch statistics are of the whole batch, not of 32 examples of it; cosine decay.
"""

from configs import common, hardware


def get_config(arg=None):
    config = common.imagenet_base()
    config.batch_size = 1024
    config.duration = {"epochs": 90}
    config.data.transforms = (dict(name="random_resized_crop"), dict(name="random_flip"))
    config.model = dict(name="resnet", variant="50")
    config.objective = dict(name="classification", num_classes=common.IMAGENET_CLASSES)
    config.optimizer = dict(
        name="sgd",
        lr=0.4,
        schedule=dict(name="cosine", warmup={"epochs": 5}),
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay_convention="l2",  # a term of the loss, so that it passes through the momentum
    )
    config.evaluators = {"validation": common.accuracy(every={"epochs": 5})}
    return hardware.apply(config, arg)
