"""Figures that Michael Nielsen's book published, got again by this library, image by image.

``python -m examples.nielsen overfitting --data path/to/mnist`` trains as the code of *Neural Networks and Deep
Learning* did, from the same draws, and prints each epoch's figures beside those that were published. The network, its
cost, its gradients and its SGD are deltaprop's; two things alone are the book's, the initial draws and the order of the
samples.
"""
