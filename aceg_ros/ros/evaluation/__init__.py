# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a running localizer node: accuracy over topics, and speed."""
