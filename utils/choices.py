"""The names that flags accept, apart from the code behind them: `run.py --help` lists them without importing torch."""

DATASETS = ("cifar-10", "nus-wide-tc21", "nus-wide-tc10", "flickr25k", "imagenet", "digits", "folder", "lists")
PROTOCOLS = ("pool", "train-5000", "test-10000")  # docs/datasets.md
AUGMENTATIONS = ("crop-flip", "crop", "none")
BACKBONES = ("alexnet", "resnet18", "resnet50", "vit_b_16", "squeezenet1_0")
