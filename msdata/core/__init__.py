"""What every room uses: whole files, checksums, signals, text, options, MPI."""
