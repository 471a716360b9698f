"""Generated worlds beside the scenes with questions that the package brings: captions, sentences about two images, regions.

`python benchmarks/worlds/write.py --help` writes them out as ordinary folders, which the package reads like any other data.
"""
