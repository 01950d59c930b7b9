"""The operators of mmebm and their backends. `ops` is the contract; nothing here imports the rest of mmebm."""
