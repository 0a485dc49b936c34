"""The paper's method (DuoLoRA, arXiv 2504.13206, section 4), and what this project puts in its places.

Formulas on tensors:

- `ziprank`: masks over ranks, `dW = U_c diag(m_c) S_c V_c^T + U_s diag(m_s) S_s V_s^T` (section 4.1).
- `priors`: roles of layers by resolution, the masks they begin with, and `L_prior` (section 4.2, equation 7).
- `constyle`: `L_constyle`, cycles between content, style and both (section 4.3).
- `measured_priors`: strengths of groups of layers found by experiment, where section 4.2 assumes them (ours).
- `closed_form`: masks by least squares on the layers' outputs, where the paper takes steps (ours).

What puts them together on a model:

- `merge_case`: what a merge may look at.
- `merge_start`: where masks begin.
- `merge_objective`: `L = L_distill + prior_weight L_prior + constyle_weight L_constyle`, where `L_distill` is the
  distance from a bank of teachers (ZipLoRA, equation 3).

The steps themselves are taken by `duolora.merge`. Importing the package imports none of its modules.
"""
