"""The report: one HTML file, to read without a network.

`static/libraries.js` holds other people's scripts, written by `make web`. Read `page` first, then `content`.
"""
