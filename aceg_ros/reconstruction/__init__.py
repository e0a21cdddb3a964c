# SPDX-License-Identifier: Apache-2.0
"""Posed images from images alone, by structure from motion: a video, a folder or a bag becomes a recording.

The steps: read the images (sources), select sharp ones that show something new (selection), find their poses with
pycolmap (structure), give them a scale and a direction of gravity (metric), write them as a recording (reconstruct).
"""
