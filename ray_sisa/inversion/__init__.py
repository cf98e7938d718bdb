"""Model inversion of a split network: from what leaves a device back to the image, with torch and without storage."""
