"""Generated worlds beside the scenes with questions of the package: captions, sentences about two images, regions.

`python benchmarks/worlds/write.py --help` writes them out as ordinary folders, which are read like any other data.
"""
