"""Ready runs, one file each, found by name: --config=quickstart. Installed as mtsft.configs."""
