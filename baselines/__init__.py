"""Other supervised deep-hashing methods, trained and evaluated exactly as SCHN is.

`symmetric.train` trains DPSH, HashNet, CSQ, GreedyHash and OrthoHash; `adsh.train` trains ADSH. Each method has a file
with its loss. The losses of the symmetric methods are modules that are called alike:

    loss(hash_output, labels, rows, progress) -> the parts of the loss by name, scalars; the loss is their sum

    hash_output: z, the output of the last linear layer, before tanh [N, K]; the code of an image is sign(z).
    labels: multi-hot labels [N, C] in {0, 1}, in the dtype of hash_output.
    rows: the database rows of the batch [N], int64, none twice.
    progress: share of the schedule that is done, from 0 to 1.

A loss uses what it needs of these. An image without labels is dissimilar to every image, itself included, where the
loss compares pairs (ADSH, DPSH, HashNet), and adds 0 to the classification where it does not.
"""
