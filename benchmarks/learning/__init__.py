"""What every method learns on the demo's language, by the gold score that none of them sees.

    python -m benchmarks.learning out=runs/learning seeds=[0,1,2,3,4]

The table, the analyses below it and the figure are written to `out` once all seeds are through; `docs/learning.md`
tells what they mean. The same command goes on where it stopped. The figure needs matplotlib.
"""
