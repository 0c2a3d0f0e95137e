"""What runs on the operator's machine: settings, the plan of a run, gates, reports, and the calls to other machines."""
