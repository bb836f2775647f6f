"""Linear maps from features to responses (fMRI voxels, vertices, regions): ridge in all its forms, and what keeps its scores honest."""
