"""Stand-ins for the public cutout services: protocols, headers and faults over a mock sky."""
