"""Images on their way to a model: read, resized, cut in windows. Needs no PyTorch, nor mmseg."""
