"""Reproduces the published numbers of Michael Nielsen's book exactly.

``python -m examples.nielsen overfitting --data path/to/mnist`` trains like the code of *Neural Networks and Deep
Learning*, with the same random numbers, and prints the numbers of each epoch next to the published ones. The network,
its cost, its gradients and its SGD are deltaprop's; only the initial weights and the order of the samples are the
book's.
"""
