"""The HTML report of an evaluation: one file, pictures inside, nothing fetched from anywhere.

`content` is what it is made from, the `*_figures` draw, `page` puts it together. Only `canvas`
knows matplotlib.
"""
