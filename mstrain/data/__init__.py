"""From the loader's batches to tensors on the device."""
