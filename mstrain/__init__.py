"""mstrain trains and evaluates redshift networks on data that msdata packed."""

# What a training that was told to stop leaves with, once its state is saved: "queue me again".
REQUEUE_EXIT_CODE = 85
