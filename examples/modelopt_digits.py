"""Annealing-KD with NVIDIA ModelOpt: its kd_loss mode runs the teacher and keeps it out of the student's checkpoints.
Run:    python examples/modelopt_digits.py   (needs: pip install '.[modelopt]' scikit-learn)
Prints: teacher 95.7 %, scratch 92.1 %, annealing_kd 93.0 %
"""

import copy

import digits
import modelopt.torch.distill as mtd
import torch

from akd_ext.adapters.modelopt import AnnealingKDLoss

epochs = digits.epochs(__doc__)
train, val, test = digits.data()
teacher = digits.fit(digits.MLP(256), train, val, epochs)
scratch = digits.fit(digits.MLP(8), train, val, 2 * epochs)

# Stage I.
criterion = AnnealingKDLoss(tau_max=10)
student = mtd.convert(digits.MLP(8), mode=[("kd_loss", {"teacher_model": teacher, "criterion": criterion})])
optimizer, best = torch.optim.Adam((p for p in student.parameters() if p.requires_grad), lr=0.01), -1.0
for epoch in range(epochs):
    criterion.set_epoch(epoch, epochs)
    student.train()
    for images in train[0][torch.randperm(len(train[0]))].split(32):
        optimizer.zero_grad()
        student(images)  # runs the teacher as well; both outputs wait for the loss
        student.compute_kd_loss().backward()
        optimizer.step()
    student.eval()
    with student.only_student_forward():
        now = digits.accuracy(student, *val)
    if now > best:
        best, kept = now, copy.deepcopy(student.state_dict())
# Stage II: the student alone, from the best of stage I.
student.load_state_dict(kept)
student = digits.fit(mtd.export(student), train, val, epochs, lr=0.002)

digits.report(test, teacher=teacher, scratch=scratch, annealing_kd=student)
