"""The rewind matrix as data: servers (`servers`), the type zoo (`types`), traps (`traps`), and the walk they are put through."""
