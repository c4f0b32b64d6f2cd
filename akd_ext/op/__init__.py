"""The fused op ``torch.ops.akd_ext.annealed_mse``: its kernels, autograd, DTensors, the checks of its arguments.

In: student and teacher logits, Phi. Out: the loss and, in the same pass, the student's gradient.
May import: `akd_ext.reference`. Nothing here knows a schedule, a trainer or a library.
"""
