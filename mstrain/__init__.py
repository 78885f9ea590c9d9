"""mstrain trains and evaluates redshift networks on data that msdata packed."""
