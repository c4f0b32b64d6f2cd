"""Annealing-KD in plain PyTorch, on scikit-learn's digits.
Run: python examples/plain_pytorch.py
"""

import copy

import digits
import torch

import akd_ext

args = digits.arguments(__doc__)
train, val, test = digits.data()
teacher = digits.fit(digits.mlp(128), train, val, args.epochs)
scratch = digits.fit(digits.mlp(8), train, val, 2 * args.epochs)

student, criterion = digits.mlp(8), akd_ext.AnnealingKDLoss(tau_max=10)
optimizer, best = torch.optim.Adam(student.parameters(), lr=0.003), -1.0
with torch.no_grad():
    teacher_logits = teacher(train[0])
for epoch in range(args.epochs):  # stage I: the annealed logits
    criterion.set_epoch(epoch, args.epochs)
    for batch in torch.randperm(len(teacher_logits)).split(32):
        optimizer.zero_grad()
        criterion(student(train[0][batch]), teacher_logits[batch]).backward()
        optimizer.step()
    if (now := digits.accuracy(student, *val)) > best:
        best, kept = now, copy.deepcopy(student.state_dict())
student.load_state_dict(kept)  # stage II: the labels, from the best of stage I
student = digits.fit(student, train, val, args.epochs)

digits.report(test, teacher=teacher, scratch=scratch, annealing_kd=student)
