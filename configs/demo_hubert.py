"""HuBERT's two iterations on 480 spoken digits, on two CPU cores.

Paper: HuBERT, arXiv 2106.07447, at toy size.
Command: python -m tools.cluster --features mfcc --rate 8000 --clusters 50
    --config configs/demo_hubert.py --output runs/demo_hubert_mfcc
  python -m launch.local --config configs/demo_hubert.py --workdir runs/demo_hubert
  python -m tools.cluster --model runs/demo_hubert --layer 2 --clusters 50
    --config configs/demo_hubert.py --output runs/demo_hubert_layer2
  python -m launch.local --config configs/demo_hubert.py:second --workdir runs/demo_hubert_second
Cost: five and a half minutes of two CPU cores for the first two commands.
Published: none.
Measured: purity of 50 clusters of cepstra 44.3 % (the most frequent digit 12.2 %) and PNMI .364.
  With clusters of all 720 clips, those of the held-out speakers too: 40.3 % and .305; of the
  trained model's blocks 33.6 % to 35.4 % and .247 to .276: they do not rise here. Its probes tell
  51.7 % of the digits of two speakers whose clips are in the clusters alone (cepstra 54.6 %, random
  weights 25.4 %) and 93.3 % of the speakers (91.7 % and 73.0 %).

The argument 'second' guesses the clusters of what was trained first. tools.cluster prints what each
says about digits.
"""

from configs import demo_speech, hardware


def get_config(arg=None):
    names = (arg or "").split(",")
    second = "second" in names
    config = demo_speech.get_config()
    config.duration = {"steps": 800}
    # Frames of the model are 10 ms, as those of cepstra are.
    config.preprocessing.units_per_second = 100.0
    path = "runs/demo_hubert_layer2" if second else "runs/demo_hubert_mfcc"
    config.data.source = dict(name="units", source=config.data.source.to_dict(), path=path)
    # Clusters were found in clips as they are: nothing may change their speed.
    config.data.transforms = (dict(name="decode_audio"), dict(name="crop_audio"))
    config.model.name = "hubert"
    config.objective = dict(
        name="cluster_prediction",
        num_clusters=50,
        masking=dict(rate=0.65, length=10),
        projection_dim=64,
        feature_penalty=0.0,
    )
    return hardware.apply(config, ",".join(n for n in names if n != "second"))
