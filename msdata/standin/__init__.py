"""Stand-ins for the public cutout services: their protocols, headers and faults, over a mock sky."""
