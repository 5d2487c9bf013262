"""One batch, layer by layer: recorded, compared with autograd and differences, written out, and shown as a page."""
