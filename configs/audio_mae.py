"""Audio-MAE: masked spectrograms of AudioSet, ViT-B/16.

Paper: Masked Autoencoders that Listen, arXiv 2207.06405, section 4.2 and appendix A (numbers from
  memory).
Command: python -m launch.local --config configs/audio_mae.py --workdir runs/audio_mae
  data/audioset: what `tools.prepare_data --from audio` made of the clips, 16 kHz, one channel.
Cost: not measured here; the paper trains on 64 V100 for 36 hours.
Published: 47.3 mAP on AudioSet-2M after fine-tuning.
Measured: not run.
Differences: the decoder attends to all patches, where the paper's has shifted windows.
"""

from ml_collections import ConfigDict

from configs import hardware

AUDIOSET_CLIPS = 2_000_000  # that can still be downloaded; set it to what was prepared


def get_config(arg=None):
    config = ConfigDict(
        dict(
            seed=0,
            batch_size=512,
            duration={"epochs": 32},
            preprocessing=dict(
                name="audio", sample_rate=16_000, max_samples=163_840, min_samples=400
            ),
            data=dict(
                source=dict(name="audio", path="data/audioset"),
                transforms=(dict(name="decode_audio"), dict(name="crop_audio")),
                examples_per_epoch=AUDIOSET_CLIPS,
                threads=4,
                processes=8,
            ),
            model=dict(
                name="spectrogram_vit",
                variant="B/16",
                pool="cls",
                weight_init="mae",
                scan=False,
                remat="none",
            ),
            objective=dict(
                name="masked_image",
                mask_ratio=0.8,
                decoder=dict(width=512, depth=16, num_heads=16),
                norm_pix=True,
            ),
            optimizer=dict(
                name="adamw",
                lr=2e-4,
                schedule=dict(name="cosine", warmup={"epochs": 3}),
                b1=0.9,
                b2=0.95,
                weight_decay=0.05,
                decay_rules=((r".*kernel|encoder/cls_token|decoder/mask_token", 1.0),),
            ),
            evaluators=dict(),
            checkpoint=dict(every={"epochs": 1}, keep_last=2),
            log=dict(every={"steps": 50}),
            hardware=hardware.section(),
            deadlines=dict(),
        )
    )
    return hardware.apply(config, arg)
