"""Annealing-KD in plain PyTorch: the loop below is all of it.
Run:    python examples/plain_pytorch.py   (needs: pip install scikit-learn)
Prints: teacher 95.7 %, scratch 92.1 %, annealing_kd 93.0 %
"""

import copy

import digits
import torch

import akd_ext

epochs = digits.epochs(__doc__)
train, val, test = digits.data()
teacher = digits.fit(digits.MLP(256), train, val, epochs)
scratch = digits.fit(digits.MLP(8), train, val, 2 * epochs)

# Stage I: the teacher's logits, annealed.
student, criterion = digits.MLP(8), akd_ext.AnnealingKDLoss(tau_max=10)
optimizer, best = torch.optim.Adam(student.parameters(), lr=0.01), -1.0
with torch.no_grad():
    teacher_logits = teacher(train[0])
for epoch in range(epochs):
    criterion.set_epoch(epoch, epochs)
    for batch in torch.randperm(len(teacher_logits)).split(32):
        optimizer.zero_grad()
        criterion(student(train[0][batch]), teacher_logits[batch]).backward()
        optimizer.step()
    if (now := digits.accuracy(student, *val)) > best:
        best, kept = now, copy.deepcopy(student.state_dict())
# Stage II: the labels, from the best of stage I.
student.load_state_dict(kept)
student = digits.fit(student, train, val, epochs, lr=0.002)

digits.report(test, teacher=teacher, scratch=scratch, annealing_kd=student)
